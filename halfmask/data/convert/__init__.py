"""Convert masks between formats: `convert` (writing), `mask_source` (reading)."""
