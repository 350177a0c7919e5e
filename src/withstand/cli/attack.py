def run() -> None:
    """TODO attack"""
