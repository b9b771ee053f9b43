"""What an expert may call while it reasons."""

__all__: list[str] = []
