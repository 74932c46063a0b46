// Scores a CSV file with a model that `dien-fast export` wrote. No Python takes part.
//
//     serve MODEL.pt2 LIBRARY.so ROWS.csv              a probability for each row
//     serve MODEL.pt2 LIBRARY.so USERS.csv candidates  a probability for each candidate; a row of the file is
//     a
//                                                      user, and its candidate columns hold several words
//
//     --threads N  score the file in N threads at once, which must get the same bits
//     --repeat N   score it N times more in each thread, for the times
//
// LIBRARY.so has the operators: python -c 'import dien_fast; print(dien_fast.ops.backend.LIBRARY)'. The file
// has a header and the columns of the schema; cells hold no commas and no quotes. Probabilities go to
// standard output, times to standard error.

#include <caffe2/serialize/inline_container.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <future>
#include <iostream>
#include <map>
#include <stdexcept>

#include "encoders.h"

using nlohmann::json;
using Table = std::map<std::string, std::vector<std::string>>;  // cells by column

namespace {

json read_extra(caffe2::serialize::PyTorchStreamReader& package, const std::string& name) {
    const auto [data, size] = package.getRecord("extra/" + name);
    return json::parse(static_cast<const char*>(data.get()), static_cast<const char*>(data.get()) + size);
}

Table read_csv(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    if (!std::getline(file, line)) {
        throw std::runtime_error(path + " cannot be read, or is empty");
    }
    const auto header = split(line, ",");
    Table table;
    for (size_t row = 1; std::getline(file, line); ++row) {
        const auto cells = split(line, ",");
        if (cells.size() != header.size()) {
            throw std::runtime_error(path + ", row " + std::to_string(row) + ": expected " +
                                     std::to_string(header.size()) + " cells, got " +
                                     std::to_string(cells.size()));
        }
        for (size_t column = 0; column < header.size(); ++column) {
            table[header[column]].push_back(cells[column]);
        }
    }
    return table;
}

const std::vector<std::string>& column(const Table& table, const std::string& name) {
    const auto found = table.find(name);
    if (found == table.end()) {
        throw std::runtime_error("the table must have a column " + name);
    }
    return found->second;
}

// The session of each event: a pause longer than `gap` seconds begins another.
std::vector<int64_t> sessions(const std::vector<std::string>& times, double gap, const Words& history) {
    std::vector<int64_t> numbers;
    int64_t session = 0;
    for (const auto& cell : times) {
        const auto moments = split(cell, history.separator());
        const auto [kept, skipped] = history.cut(moments.size());
        ++session;
        for (size_t event = skipped; event < skipped + kept; ++event) {
            if (event > 0 && std::stod(moments[event]) - std::stod(moments[event - 1]) > gap) {
                ++session;
            }
            numbers.push_back(session);
        }
    }
    return numbers;
}

// The encoders of a model by feature.
struct Encoders {
    explicit Encoders(const json& content) {
        for (const auto& [feature, encoder] : content.items()) {
            if (encoder.at("encoder") == "NumericEncoder") {
                quantiles.emplace(feature, encoder);
            } else {
                words.emplace(feature, encoder);
            }
        }
    }

    std::map<std::string, Words> words;
    std::map<std::string, Quantiles> quantiles;
};

// Makes the arguments of a program out of a table.
class Arguments {
  public:
    Arguments(const json& description, const Encoders& encoders, const Table& table,
              const std::string& program)
        : schema_(description.at("schema")), encoders_(encoders), table_(table) {
        for (const auto& input : description.at("programs").at(program).at("inputs")) {
            tensors_.push_back(make(input.at("name"), input.at("size"), input.at("dtype") == "float32"));
            check_size(input.at("name"), input.at("size"), tensors_.back().numel());
        }
    }

    const std::vector<at::Tensor>& tensors() const { return tensors_; }

  private:
    // The compiled program does not look at sizes: where they differ, it would read what is not there.
    void check_size(const std::string& name, const std::string& size, int64_t elements) {
        const auto more = size.find(" + 1");
        const int64_t extra = more == std::string::npos ? 0 : 1;
        const auto& [other, count] =
            sizes_.try_emplace(size.substr(0, more), name, elements - extra).first->second;
        if (count + extra != elements) {
            throw std::runtime_error(name + " must have " + std::to_string(count + extra) +
                                     " elements, to go with " + other + ", got " + std::to_string(elements));
        }
    }

    at::Tensor make(const std::string& name, const std::string& size, bool numeric) {
        if (name == "candidates.offsets") {
            return at::tensor(candidate_offsets_, at::kLong);
        }
        if (const auto end = name.rfind(".offsets"); end != std::string::npos) {
            std::vector<int64_t> offsets{0};
            const Words& words = encoders_.words.at(name.substr(0, end));
            for (const auto& cell : column(table_, name.substr(0, end))) {
                offsets.push_back(offsets.back() + static_cast<int64_t>(words.history(cell).size()));
            }
            return at::tensor(offsets, at::kLong);
        }
        if (const auto end = name.rfind(".session"); end != std::string::npos) {
            return session_numbers(name.substr(0, end));
        }
        return numeric ? numbers(name, size) : ids(name, size);
    }

    at::Tensor numbers(const std::string& name, const std::string& size) {
        const Quantiles& quantiles = encoders_.quantiles.at(name);
        const auto separator = schema_.at("separator").get<std::string>();
        std::vector<float> values;
        for (const auto& cell : column(table_, name)) {
            if (size == "candidates") {
                for (const auto& number : split(cell, separator)) {
                    values.push_back(quantiles.of(number));
                }
            } else {
                values.push_back(quantiles.of(cell));
            }
        }
        return at::tensor(values, at::kFloat);
    }

    at::Tensor ids(const std::string& name, const std::string& size) {
        const Words& words = encoders_.words.at(name);
        const auto separator = schema_.at("separator").get<std::string>();
        std::vector<int64_t> found, offsets{0};
        for (const auto& cell : column(table_, name)) {
            if (size == "candidates") {
                for (const auto& word : split(cell, separator)) {
                    found.push_back(words.id(word));
                }
            } else if (size.rfind("events", 0) == 0) {
                const auto history = words.history(cell);
                found.insert(found.end(), history.begin(), history.end());
            } else {
                found.push_back(words.id(cell));
            }
            offsets.push_back(static_cast<int64_t>(found.size()));
        }
        if (size == "candidates") {
            candidate_offsets_ = offsets;
        }
        return at::tensor(found, at::kLong);
    }

    at::Tensor session_numbers(const std::string& name) {
        for (const auto& group : schema_.at("groups")) {
            if (group.at("name").get<std::string>() == name) {
                const Words& history =
                    encoders_.words.at(group.at("pairs")[0].at("pos_hist").get<std::string>());
                const auto& times = column(table_, group.at("time"));
                return at::tensor(sessions(times, group.at("session_gap"), history), at::kLong);
            }
        }
        throw std::runtime_error("the schema has no group " + name);
    }

    const json& schema_;
    const Encoders& encoders_;
    const Table& table_;
    // By what arguments have elements for: the first of them, and how many there are.
    std::map<std::string, std::pair<std::string, int64_t>> sizes_;
    std::vector<int64_t> candidate_offsets_{0};
    std::vector<at::Tensor> tensors_;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

struct Options {
    std::string model, library, csv, program = "rows";
    size_t threads = 1, repeat = 0;
};

// A loaded model and a table to score.
class Scorer {
  public:
    explicit Scorer(const Options& options)
        : program_(options.program),
          package_(options.model),
          description_(read_extra(package_, "dien_fast.json")),
          encoders_(read_extra(package_, "encoders.json")),
          table_(read_csv(options.csv)),
          loader_(options.model, program_, false, options.threads) {}

    // From words to probabilities; may be called by as many threads as the options say.
    at::Tensor score() {
        const c10::InferenceMode inference;
        const Arguments arguments(description_, encoders_, table_, program_);
        return loader_.run(arguments.tensors()).at(0).contiguous();
    }

    // Score several times, each of which must give these bits; return the seconds of each.
    std::vector<double> repeat(size_t times, const at::Tensor& expected) {
        std::vector<double> seconds;
        for (size_t call = 0; call < times; ++call) {
            const auto start = std::chrono::steady_clock::now();
            const at::Tensor found = score();
            seconds.push_back(seconds_since(start));
            if (!found.equal(expected)) {
                throw std::runtime_error("two calls gave different probabilities");
            }
        }
        return seconds;
    }

  private:
    std::string program_;
    caffe2::serialize::PyTorchStreamReader package_;
    json description_;
    Encoders encoders_;
    Table table_;
    torch::inductor::AOTIModelPackageLoader loader_;
};

void serve(const Options& options) {
    const auto start = std::chrono::steady_clock::now();
    if (dlopen(options.library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
        throw std::runtime_error(dlerror());
    }
    Scorer scorer(options);
    const at::Tensor probabilities = scorer.score();
    std::fprintf(stderr, "load and first score: %.3f s\n", seconds_since(start));

    std::vector<std::future<std::vector<double>>> threads(options.threads);
    for (auto& thread : threads) {
        thread = std::async(std::launch::async, [&] {
            return scorer.repeat(std::max<size_t>(options.repeat, 1), probabilities);
        });
    }
    std::vector<double> seconds;
    for (auto& thread : threads) {
        const auto found = thread.get();
        seconds.insert(seconds.end(), found.begin(), found.end());
    }
    std::fprintf(stderr, "p50 of %zu scores on %zu threads: %.3f ms\n", seconds.size(), threads.size(),
                 1e3 * median(seconds));
    for (int64_t row = 0; row < probabilities.size(0); ++row) {
        std::printf("%.9g\n", probabilities.data_ptr<float>()[row]);
    }
}

// Returns whether the words of the command are understood.
bool parse(const std::vector<std::string>& words, Options& options) {
    std::vector<std::string> places;
    for (size_t place = 0; place < words.size(); ++place) {
        const bool threads = words[place] == "--threads";
        if (!threads && words[place] != "--repeat") {
            places.push_back(words[place]);
        } else if (++place == words.size() || std::atol(words[place].c_str()) < 1) {
            return false;
        } else {
            (threads ? options.threads : options.repeat) = std::stoul(words[place]);
        }
    }
    if (places.size() < 3 || places.size() > 4) {
        return false;
    }
    options.model = places[0], options.library = places[1], options.csv = places[2];
    options.program = places.size() == 4 ? places[3] : options.program;
    return true;
}

}  // namespace

int main(int count, char** words) {
    try {
        Options options;
        if (!parse({words + 1, words + count}, options)) {
            std::cerr << "usage: serve MODEL.pt2 LIBRARY.so TABLE.csv [rows | candidates] [--threads N] "
                         "[--repeat N]\n";
            return 2;
        }
        serve(options);
    } catch (const c10::Error& error) {
        std::cerr << "serve: error: " << error.what_without_backtrace() << "\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "serve: error: " << error.what() << "\n";
        return 2;
    }
    return 0;
}
