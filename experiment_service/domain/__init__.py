"""What an experiment, an assignment, an event and a metric are; standard library only."""
