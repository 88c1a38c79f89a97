"""Corrects the output of any recogniser: clear errors become characters that sound the same or nearly so."""
