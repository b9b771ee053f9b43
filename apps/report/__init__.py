"""What came of a run or a comparison, as one HTML file."""
