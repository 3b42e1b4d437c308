"""VBench-I2V for a comparison: videos as it reads them, its result files as tables, and the command for both."""
