"""What Njord Quant's journals, portfolio and rules mean. Frames in, plain objects out; pure."""
