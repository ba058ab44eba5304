"""Pictures of results, made from result objects only."""
