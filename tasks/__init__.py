# First of all: it tells libraries what they may do and where to keep things, before anything imports them.
from tasks import workspace as workspace
