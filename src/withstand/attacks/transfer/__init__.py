"""Attacks that are made on one model to be used on another: views and shapings that compose, and their named stacks."""
