"""`cm3 experiment tasks`: what a tuned model of icons does of each of its tasks."""
