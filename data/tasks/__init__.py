"""Tasks made offline: retrieval, tracking, counting, facts, key–value, edits; any length."""
