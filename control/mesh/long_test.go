package mesh

import "os"

// long says whether tests may take minutes: scripts/test-long.
func long() bool { return os.Getenv("WEFT_TEST_LONG") != "" }

func mutations() int {
	if long() {
		return 1e6
	}
	return 2e4
}
