def run() -> None:
    """TODO reproduce"""
