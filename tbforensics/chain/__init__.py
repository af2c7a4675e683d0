"""What The-Block's ledgers, lanes, epochs and subsidies mean. Frames in, plain objects out."""
