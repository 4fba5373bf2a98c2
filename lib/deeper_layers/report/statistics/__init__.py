"""What units say, in numbers: curves with intervals, items that flip, tests, and how sure each is.

In: units, or rows of them. Out: tables, intervals, paired changes. Nothing is judged here and nothing drawn.
Read first: curves.py (rows as curves), outcomes.py (item by item, and where the cliff is), evidence.py (all that is
held of one model). topics.py says what tasks ask about, items.py which items are right, joined.py which units differ
in their cuts alone, healed.py which are of one healed model, significance.py has the tests, answers.py what log-
probabilities of every choice say, seeds.py whether a setting of healing matters more than the seed, stability.py and
reproduction.py how well a number holds when drawn or measured again.
"""
