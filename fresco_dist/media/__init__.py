"""Pictures, videos, metrics and the timeline: what people give and what they look at."""
