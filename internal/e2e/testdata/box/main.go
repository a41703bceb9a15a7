// Command box is all that is in the test's containers: it says its name, and "ask URL..." asks others for theirs.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "ask" {
		ask(os.Args[2:])
		return
	}
	name := os.Args[1]
	err := http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) }))
	os.Stderr.WriteString(err.Error())
	os.Exit(1)
}

// ask prints a line "URL answer" for each URL, all asked at once, each again until it answers, for twenty seconds.
func ask(urls []string) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	deadline := time.Now().Add(20 * time.Second)
	var printing sync.Mutex
	var wg sync.WaitGroup
	for _, url := range urls {
		wg.Go(func() {
			answer, err := get(&c, url)
			for err != nil && time.Now().Before(deadline) {
				time.Sleep(100 * time.Millisecond) // between tries
				answer, err = get(&c, url)
			}
			printing.Lock()
			defer printing.Unlock()
			if err != nil {
				answer = err.Error()
			}
			fmt.Println(url, answer)
		})
	}
	wg.Wait()
}

func get(c *http.Client, url string) (string, error) {
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	answer, err := io.ReadAll(r.Body)
	return string(answer), err
}
