def run() -> None:
    """TODO compare"""
