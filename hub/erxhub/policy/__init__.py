"""Policy: the code that reads region packs and code lists. The values themselves are data beside it."""
