"""The only SQL: schema, database, experiments, events, models, reads."""
