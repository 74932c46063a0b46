"""Ends a simulated run with the largest errors of each type."""


def pytest_terminal_summary(terminalreporter):
    largest = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for dtype, errors in (value for name, value in report.user_properties if name == "errors"):
            for name, error in errors.items():
                found = largest.setdefault(dtype, {})
                found[name] = max(error, found.get(name, 0.0))
    for dtype, errors in largest.items():
        listing = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        terminalreporter.write_line(f"largest errors in {dtype}, of the largest number or 1: {listing}")
