"""x"""
def write_report(rows, results, cases):
    """x"""
