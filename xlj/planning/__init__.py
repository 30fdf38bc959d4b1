"""Parts of `xlj.plan`: what a step does, and what accelerators can do."""
