"""Instructions whose following a program can check (IFEval, Zhou et al. 2023, arXiv 2311.07911), each a function of the response.

The rules are those of the paper's program. Where its regular expressions take quadratic time on hostile text, the same is counted
line by line; sentences and words are cut by this package's rules in the place of NLTK's models.
"""
