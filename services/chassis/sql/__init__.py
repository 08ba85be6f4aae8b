"""The two databases behind `services.chassis.database`, and the chassis's own statements for each."""
