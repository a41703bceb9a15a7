// Command box is all that is in the test's containers: it says its name, and "fetch URL" asks another.
package main

import (
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "fetch" {
		c := http.Client{Timeout: 5 * time.Second}
		r, err := c.Get(os.Args[2])
		if err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		io.Copy(os.Stdout, r.Body)
		return
	}
	name := os.Args[1]
	err := http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) }))
	os.Stderr.WriteString(err.Error())
	os.Exit(1)
}
