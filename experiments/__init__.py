"""The paper's table: every row trained and tested, and the report."""
