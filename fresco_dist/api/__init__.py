"""What a Python program calls, and what the commands run on: warm workers, a call per picture, its clip.

Knows no argv, no signals and no exit codes; what goes wrong is raised.
"""
