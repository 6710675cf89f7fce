"""Turn records into tables with error bars."""
