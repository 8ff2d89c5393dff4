"""Item response theory: what a few responses say about all of them.

``responses`` and ``response_files`` read what many models responded; ``calibrate`` fits the items' parameters, which a
``bank`` keeps; ``likelihood`` says what responses mean for a model's abilities.
"""
