package pod

import (
	"fmt"
	"math/rand/v2"
)

var (
	nameLeft = []string{
		"agile", "amber", "bold", "brave", "bright", "brisk", "calm", "clever", "crisp", "daring", "eager", "early", "fair",
		"fast", "fine", "fond", "fresh", "gentle", "glad", "golden", "grand", "happy", "honest", "humble", "jolly", "keen",
		"kind", "light", "lively", "lucid", "lucky", "mellow", "merry", "mild", "neat", "nimble", "noble", "patient", "plain",
		"polite", "proud", "quick", "quiet", "rapid", "ready", "silent", "simple", "sharp", "smooth", "solid", "steady", "sunny",
		"swift", "tidy", "tranquil", "vivid", "warm", "wise", "witty", "young",
	}
	nameRight = []string{
		"babbage", "bartik", "bell", "boole", "brooks", "cerf", "codd", "corbato", "creasy", "curie", "denning", "dijkstra",
		"engelbart", "floyd", "gauss", "goldberg", "hamilton", "hamming", "hoare", "holberton", "hopper", "kahn", "kay", "kernighan",
		"knuth", "lamport", "lampson", "licklider", "liskov", "lovelace", "mccarthy", "mcilroy", "meyer", "milner", "minsky", "naur",
		"newell", "noether", "perlis", "perlman", "pike", "popek", "postel", "ritchie", "saltzer", "shannon", "simon", "stallman",
		"stearns", "sutherland", "tarjan", "thompson", "turing", "valiant", "wilkes", "wirth", "wozniak", "yao", "zuse",
	}
)

// freeNameLocked returns a generated name that is not taken.
func (s *Set) freeNameLocked() string {
	for i := 0; ; i++ {
		name := nameLeft[rand.IntN(len(nameLeft))] + "_" + nameRight[rand.IntN(len(nameRight))]
		if i > 5 {
			name = fmt.Sprintf("%s%d", name, rand.IntN(1000*i))
		}
		_, taken := s.names[name]
		_, pod := s.podNames[name]
		if !taken && !pod {
			return name
		}
	}
}
