"""From records to tables with error bars."""
