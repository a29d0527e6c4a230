// What the programs for drivers in Go share; harness.py says how they are run.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	writers     = 4
	connections = 4
	tasks       = 32
	times       = 20
	sleep       = "SELECT pg_sleep(30)"
	copyOut     = "COPY (SELECT * FROM copied ORDER BY id) TO STDOUT"
	add         = "UPDATE counted SET number = number + 1"
	count       = "SELECT number FROM counted"
	insert      = "INSERT INTO written VALUES ($1, $2)"
)

var dsn = fmt.Sprintf("host=%s port=%s user=app password=app dbname=app sslmode=verify-full sslrootcert=%s connect_timeout=20",
	os.Getenv("HOST"), os.Getenv("PORT"), os.Getenv("CA"))

type cannot struct{ error }

type check struct {
	name string
	run  func() error
}

func never(why string) func() error {
	return func() error { return cannot{errors.New(why)} }
}

func equal(found, wanted any, what string) error {
	if found != wanted {
		return fmt.Errorf("%s: %v and not %v", what, found, wanted)
	}
	return nil
}

var saying sync.Mutex

func say(what map[string]any) {
	text, err := json.Marshal(what)
	if err != nil {
		panic(err)
	}
	saying.Lock()
	defer saying.Unlock()
	fmt.Println(string(text))
}

func words(number int) string { return fmt.Sprintf("words %d é", number) }

func lines() string {
	var all strings.Builder
	for number := 0; number < 1000; number++ {
		fmt.Fprintf(&all, "%d\t%s\n", number, words(number))
	}
	return all.String()
}

// inTasks runs all at once; the first error is returned.
func inTasks(count int, run func(int) error) error {
	ends := make(chan error, count)
	for number := 0; number < count; number++ {
		go func(number int) { ends <- run(number) }(number)
	}
	var first error
	for number := 0; number < count; number++ {
		if err := <-ends; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// write lets each writer go on until it is told to stop.
func write(one func(writer, number int) error) {
	_ = inTasks(writers, func(writer int) error {
		for number := 0; ; number++ {
			if _, err := os.Stat(os.Getenv("STOP")); err == nil {
				return nil
			}
			begun := time.Now()
			if err := one(writer, number); err != nil {
				say(map[string]any{"error": err.Error(), "at": []int{writer, number}})
			} else {
				say(map[string]any{"wrote": []int{writer, number}, "seconds": time.Since(begun).Seconds()})
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}

func perform(version string, checks []check, writes func()) {
	say(map[string]any{"version": version})
	if os.Args[1] == "writes" {
		writes()
		return
	}
	for _, one := range checks {
		err := one.run()
		result := map[string]any{"check": one.name, "result": "ok", "note": ""}
		var why cannot
		if errors.As(err, &why) {
			result["result"], result["note"] = "cannot", why.Error()
		} else if err != nil {
			result["result"], result["note"] = "failed", err.Error()
		}
		say(result)
	}
}
