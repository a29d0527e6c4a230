// libpqxx. It has no pool, so each writer has a connection; harness.py says how it is run.
#include <pqxx/pqxx>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace std::chrono;
using Connection = std::unique_ptr<pqxx::connection>;

static std::string variable(const char *name) { return std::getenv(name); }

static Connection connect(const std::string &more = "") {
    return std::make_unique<pqxx::connection>(
        "host=" + variable("HOST") + " port=" + variable("PORT") + " user=app password=app dbname=app sslmode=verify-full"
        " connect_timeout=20 sslrootcert=" + variable("CA") + more);
}

static std::string quoted(const std::string &text) {
    std::string result;
    for (char one : text) result += one == '"' || one == '\\' ? '\'' : static_cast<unsigned char>(one) < ' ' ? ' ' : one;
    return "\"" + result + "\"";
}

static void say(const std::string &line) {
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    std::cout << line << std::endl;
}

template <typename T> static void expect(const T &found, const T &wanted, const std::string &what) {
    if (found == wanted) return;
    std::ostringstream text;
    text << what << ": " << found << " and not " << wanted;
    throw std::runtime_error(text.str());
}

static int value(pqxx::connection &connection, const std::string &query) {
    pqxx::nontransaction work(connection);
    return work.exec(query)[0][0].as<int>();
}

static void tls(const std::string &more = "") { expect(value(*connect(more), "SELECT 1"), 1, "the answer"); }

// The first request may come before the statement runs.
static void cancel() {
    auto connection = connect();
    std::atomic<bool> done{false};
    std::string state;
    std::thread thread([&] {
        try {
            pqxx::nontransaction work(*connection);
            work.exec("SELECT pg_sleep(30)");
        } catch (const pqxx::sql_error &error) {
            state = error.sqlstate();
        }
        done = true;
    });
    while (!done) {
        std::this_thread::sleep_for(milliseconds(200));
        if (!done) connection->cancel_query();
    }
    thread.join();
    expect(state, std::string("57014"), "SQLSTATE");
    expect(value(*connection, "SELECT 1"), 1, "the next answer");
}

static void copy() {
    auto connection = connect();
    pqxx::work work(*connection);
    work.exec("TRUNCATE copied");
    pqxx::stream_to in(work, "copied");
    auto words = [](int number) { return "words " + std::to_string(number) + " é"; };
    for (int number = 0; number < 1000; number++) in << std::make_tuple(number, words(number));
    in.complete();
    pqxx::stream_from out(work, "copied");
    std::tuple<int, std::string> row;
    int seen = 0;
    while (out >> row) {
        expect(std::get<1>(row), words(std::get<0>(row)), "a row");
        seen++;
    }
    expect(seen, 1000, "rows");
    work.commit();
}

static void prepared() {
    std::vector<Connection> connections;
    for (int add : {0, 1}) {
        connections.push_back(connect());
        connections.back()->prepare("mine", "SELECT $1::int + " + std::to_string(add));
    }
    for (int number = 0; number < 20; number++)
        for (int add : {0, 1}) {
            pqxx::work work(*connections[add]);
            expect(work.exec_prepared1("mine", number)[0].as<int>(), number + add, "the answer");
            work.commit();
        }
}

static void writer(int number_of_writer) {
    Connection connection;
    for (int number = 0; access(variable("STOP").c_str(), F_OK) != 0; number++) {
        auto begun = steady_clock::now();
        std::string row = "[" + std::to_string(number_of_writer) + ", " + std::to_string(number) + "]";
        try {
            if (!connection) connection = connect();
            pqxx::work work(*connection);
            work.exec_params("INSERT INTO written VALUES ($1, $2)", number_of_writer, number);
            work.commit();
            double seconds = duration<double>(steady_clock::now() - begun).count();
            say("{\"wrote\": " + row + ", \"seconds\": " + std::to_string(seconds) + "}");
        } catch (const std::exception &error) {
            say("{\"error\": " + quoted(error.what()) + ", \"at\": " + row + "}");
            connection.reset();
        }
        std::this_thread::sleep_for(milliseconds(50));
    }
}

int main(int, char **arguments) {
    say("{\"version\": \"" PQXX_VERSION "\"}");
    if (arguments[1] == std::string("writes")) {
        std::vector<std::thread> threads;
        for (int number = 0; number < 4; number++) threads.emplace_back(writer, number);
        for (auto &thread : threads) thread.join();
        return 0;
    }
    std::vector<std::pair<std::string, std::function<void()>>> checks = {
        {"tls", [] { tls(); }}, {"binding", [] { tls(" channel_binding=require"); }}, {"cancel", cancel}, {"copy", copy}, {"prepared", prepared}};
    for (auto &check : checks) {
        std::string result = "\"ok\", \"note\": \"\"";
        try {
            check.second();
        } catch (const std::exception &error) {
            result = "\"failed\", \"note\": " + quoted(error.what());
        }
        say("{\"check\": \"" + check.first + "\", \"result\": " + result + "}");
    }
    say("{\"check\": \"pool\", \"result\": \"cannot\", \"note\": \"none\"}");
}
