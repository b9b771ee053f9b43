"""Who does the work: engines, the pool, and the roles."""
