"""An OpenAI-compatible server over a panel."""
