"""Clusters of ops: a partition of a function's ops whose graph stays acyclic."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.ir.program import Function


class Clusters:
    """A growing partition of op positions. Clusters are numbered; -1 stands for none.

    `ancestors[c]` is a bit set of the clusters that cluster c depends on, directly or not.
    """

    def __init__(self, function: Function):
        self.function = function
        self.producer = {v: at for at, op in enumerate(function.ops) for v in op.results}
        self.cluster_of: dict[int, int] = {}
        self.members: list[list[int]] = []
        self.ancestors: list[int] = []

    def inputs_of(self, at: int) -> set[int]:
        """The clusters that make the operands of op `at`."""
        made = (self.producer.get(value) for value in self.function.ops[at].operands)
        return {self.cluster_of[position] for position in made if position is not None}

    def start(self, at: int) -> int:
        """A new cluster with op `at` alone."""
        number = len(self.members)
        self.members.append([at])
        self.ancestors.append(self._upstream(self.inputs_of(at)))
        self.cluster_of[at] = number
        return number

    def may_join(self, at: int, cluster: int) -> bool:
        """Whether op `at` can join without making a cycle among clusters."""
        others = self.inputs_of(at) - {cluster}
        return all(not (self.ancestors[other] >> cluster) & 1 for other in others)

    def join(self, at: int, cluster: int) -> None:
        """Put op `at` into the cluster; what depends on the cluster inherits its new ancestors."""
        gained = self._upstream(self.inputs_of(at) - {cluster})
        self.members[cluster].append(at)
        self.cluster_of[at] = cluster
        self.ancestors[cluster] |= gained
        for other in range(len(self.members)):
            if (self.ancestors[other] >> cluster) & 1:
                self.ancestors[other] |= gained

    def may_merge(self, a: int, b: int) -> bool:
        """Whether the two clusters can become one: no way from one to the other passes a third."""
        third = (self.ancestors[a] | self.ancestors[b]) & ~(1 << a) & ~(1 << b)
        between = (1 << a) | (1 << b)
        return all(
            not (third >> other) & 1 or not self.ancestors[other] & between
            for other in range(len(self.members))
        )

    def may_unite(self, ops: Sequence[int]) -> bool:
        """Whether these ops, one a cluster, can become one cluster, and none needs another's result
        by way of ops that are not among them."""
        wanted = {self.cluster_of[at] for at in ops}
        bits = sum(1 << cluster for cluster in wanted)
        above = 0
        for cluster in wanted:
            above |= self.ancestors[cluster]
        others = (c for c in range(len(self.members)) if (above >> c) & 1 and c not in wanted)
        return all(not self.ancestors[other] & bits for other in others)

    def merge(self, a: int, b: int) -> None:
        """Move all members of cluster b to cluster a; b stays behind, empty."""
        gained = (self.ancestors[a] | self.ancestors[b]) & ~(1 << a) & ~(1 << b)
        for at in self.members[b]:
            self.cluster_of[at] = a
        self.members[a] += self.members[b]
        self.members[b] = []
        self.ancestors[a] = gained
        for other in range(len(self.members)):
            if (self.ancestors[other] >> b) & 1 or (self.ancestors[other] >> a) & 1:
                self.ancestors[other] &= ~(1 << b)
                self.ancestors[other] |= gained | (1 << a)
        self.ancestors[b] = 0

    def _upstream(self, clusters: set[int]) -> int:
        found = 0
        for cluster in clusters:
            found |= self.ancestors[cluster] | (1 << cluster)
        return found

    def order(self) -> list[list[int]]:
        """The clusters' members, each after all that it depends on.

        Among those that are free the one whose last op came first goes first, so that values do
        not live longer than they did.
        """
        done = 0
        full = [c for c in range(len(self.members)) if self.members[c]]
        left = sorted(full, key=lambda c: max(self.members[c]))
        result: list[list[int]] = []
        while left:
            ready = next(c for c in left if self.ancestors[c] & ~done == 0)
            left.remove(ready)
            done |= 1 << ready
            result.append(sorted(self.members[ready]))
        return result
