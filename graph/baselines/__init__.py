"""What a panel is compared with: other ways to spend calls, as graphs over the same pool."""
