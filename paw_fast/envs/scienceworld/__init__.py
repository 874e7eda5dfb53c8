"""ScienceWorld: science experiments of elementary school in a text world, by the simulator of `scienceworld`."""
