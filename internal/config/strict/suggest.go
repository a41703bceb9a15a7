package strict

import "strings"

// suggest says which known word was probably meant, or which there are.
func suggest(word string, known []string) string {
	if best := Nearest(word, known); best != "" {
		return ": did you mean " + best + "?"
	}
	return ": known here are " + strings.Join(known, ", ")
}

// Nearest returns the known word that word was probably meant to be, "" when none is close.
func Nearest(word string, known []string) string {
	if len(word) > 64 { // nobody's typo; keeps hostile input cheap
		return ""
	}
	best, least := "", 1+max(1, len(word)/3)
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete, replace or swap with their neighbour (optimal
// string alignment) to make b of a.
func distance(a, b string) int {
	before, prev := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
