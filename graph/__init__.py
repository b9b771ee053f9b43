"""How the work flows: the state graph on a batch of questions."""
