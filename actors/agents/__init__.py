"""executus.actors.agents: durable runs of language models, alone or in phases, and the ports around them."""
