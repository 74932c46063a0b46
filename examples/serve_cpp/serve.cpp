// Scores a CSV file with a model that `dien-fast export` wrote. No Python takes part.
//
//     serve MODEL.pt2 LIBRARY.so ROWS.csv              a probability for each row
//     serve MODEL.pt2 LIBRARY.so USERS.csv candidates  a row for each user, whose candidate columns hold
//     several
//                                                      words; a probability for each candidate
//
// LIBRARY.so has the operators: python -c 'import dien_fast; print(dien_fast.ops.backend.LIBRARY)'. The file
// has a header and the columns of the schema; cells hold no commas and no quotes. Probabilities go to
// standard output.

#include <caffe2/serialize/inline_container.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
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

// Makes the arguments of a program out of a table.
class Arguments {
  public:
    Arguments(const json& description, const json& encoders, const Table& table, const std::string& program)
        : schema_(description.at("schema")), encoders_(encoders), table_(table) {
        for (const auto& input : description.at("programs").at(program).at("inputs")) {
            tensors_.push_back(make(input.at("name"), input.at("size"), input.at("dtype") == "float32"));
        }
    }

    const std::vector<at::Tensor>& tensors() const { return tensors_; }

  private:
    at::Tensor make(const std::string& name, const std::string& size, bool numeric) {
        if (name == "candidates.offsets") {
            return at::tensor(candidate_offsets_, at::kLong);
        }
        if (const auto end = name.rfind(".offsets"); end != std::string::npos) {
            std::vector<int64_t> offsets{0};
            const Words words(encoders_.at(name.substr(0, end)));
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
        const Quantiles quantiles(encoders_.at(name));
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
        const Words words(encoders_.at(name));
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
                const Words history(encoders_.at(group.at("pairs")[0].at("pos_hist").get<std::string>()));
                const auto& times = column(table_, group.at("time"));
                return at::tensor(sessions(times, group.at("session_gap"), history), at::kLong);
            }
        }
        throw std::runtime_error("the schema has no group " + name);
    }

    const json& schema_;
    const json& encoders_;
    const Table& table_;
    std::vector<int64_t> candidate_offsets_{0};
    std::vector<at::Tensor> tensors_;
};

void serve(const std::string& model, const std::string& library, const std::string& csv,
           const std::string& program) {
    if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
        throw std::runtime_error(dlerror());
    }
    caffe2::serialize::PyTorchStreamReader package(model);
    const json description = read_extra(package, "dien_fast.json");
    const json encoders = read_extra(package, "encoders.json");
    const Table table = read_csv(csv);
    const Arguments arguments(description, encoders, table, program);

    torch::inductor::AOTIModelPackageLoader loader(model, program);
    const c10::InferenceMode inference;
    const at::Tensor probabilities = loader.run(arguments.tensors()).at(0).contiguous();
    for (int64_t row = 0; row < probabilities.size(0); ++row) {
        std::printf("%.9g\n", probabilities.data_ptr<float>()[row]);
    }
}

}  // namespace

int main(int count, char** words) {
    if (count < 4 || count > 5) {
        std::cerr << "usage: serve MODEL.pt2 LIBRARY.so TABLE.csv [rows | candidates]\n";
        return 2;
    }
    try {
        serve(words[1], words[2], words[3], count == 5 ? words[4] : "rows");
    } catch (const std::exception& error) {
        std::cerr << "serve: error: " << error.what() << "\n";
        return 2;
    }
    return 0;
}
