"""The chapters of a report: each turns gathered material into HTML."""
