// Vocabularies and quantiles of an exported model, as encoders.json has them: from words of a CSV file to
// ids.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <vector>

// The parts of a text between separators; none of an empty text.
std::vector<std::string> split(const std::string& text, const std::string& separator);

// A word's id by the word, as CategoryEncoder and SequenceEncoder have them.
class Words {
  public:
    explicit Words(const nlohmann::json& encoder);

    // The id of a word; of one that training did not see, that of __UNKNOWN__.
    int64_t id(const std::string& word) const;
    // The ids of a history, oldest first, cut to the events that the model reads.
    std::vector<int64_t> history(const std::string& text) const;
    // How many events are left of a history of so many, and how many of its oldest are cut off.
    std::pair<size_t, size_t> cut(size_t events) const;
    const std::string& separator() const { return separator_; }

  private:
    std::unordered_map<std::string, int64_t> ids_;
    int64_t unknown_ = 0;
    bool whole_numbers_ = false;
    bool newest_ = true;
    size_t longest_ = 0;
    std::string separator_;
};

// A number's quantile in [0, 1], as NumericEncoder gives it.
class Quantiles {
  public:
    explicit Quantiles(const nlohmann::json& encoder);

    // The quantile of a number as text; an empty text is missing and has the quantile of the mean.
    float of(const std::string& text) const;

  private:
    double mean_ = 0;
    std::vector<double> quantiles_;
};
