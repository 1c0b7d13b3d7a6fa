"""FCS-MLFT study: feature-channel-similarity pruning and mutual-learning fine-tuning, tested.

Data flows one way: dataset -> reference network -> channel statistics -> importance -> plan ->
compact network -> fine-tuning -> record -> table, figure, page. Importing the package creates nothing.
"""

__version__ = "0.1.0"
