"""Load tests: they use the service only over HTTP, and of a bundle they read only held_out.jsonl.

Commands: `replay`, `locustfile`, `sweep`, `stress`, `mutate`, `request_cost`, `page_speed`,
`store_memory`. Reading order: `clients` (what the commands share), `replay`, `stress`, `sweep` with
`sweeping` (its results, report and picture). `bench` is the exception: it times the kernel itself
and imports the service (docs/decisions/011). README.md beside this file says which question each
command answers.
"""
