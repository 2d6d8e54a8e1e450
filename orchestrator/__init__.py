"""The only folder that does things: runs flows, keeps budgets, journals and traces, and the doors."""
