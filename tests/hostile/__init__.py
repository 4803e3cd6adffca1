"""Many cases of bad timing and bad peers: cancellation at every point, events in any order, peers that stall."""
