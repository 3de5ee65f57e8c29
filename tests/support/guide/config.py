# The monthly budget cap for LLM usage in USD.
MONTHLY_BUDGET_CAP = 20.00
