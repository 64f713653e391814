"""How the bundled demo checkpoint is made: facts, documents, tokenizer, training, evaluation.

`scripts/train_demo_model.py` is the way in. Nothing here is imported by Cleave itself.
"""
