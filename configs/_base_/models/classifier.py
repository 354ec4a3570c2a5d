# An image classifier of mmpretrain. A leaf adds the backbone and the head.
model = dict(type='ImageClassifier')
